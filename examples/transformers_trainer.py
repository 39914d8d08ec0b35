"""One more task with transformers' Trainer."""

from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

import nlora
from common import arguments, load, read, tokenize

args = arguments(__doc__)
model, tokenizer = load(args.model)
task = nlora.next_task(
    model,
    after=args.after,
    method={"name": "nlora", "weight": args.weight},
    lora={"r": args.rank, "alpha": 2 * args.rank, "dropout": 0.0},
    seed=args.seed,
)
trainer = Trainer(
    model=task.model,
    args=TrainingArguments(
        output_dir=f"{args.out}-trainer",
        num_train_epochs=1,
        per_device_train_batch_size=args.batch_size // 2,
        gradient_accumulation_steps=2,  # the penalty still counts once per optimizer step
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        seed=task.seed,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=tokenize(read(args.data), tokenizer),
    data_collator=DataCollatorForSeq2Seq(tokenizer),
    callbacks=[task.callback],
)
trainer.train()
task.save(args.out)
