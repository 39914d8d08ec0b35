"""One more task with TRL's SFTTrainer (pip install trl)."""

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import nlora
from common import arguments, load, read

args = arguments(__doc__)
model, tokenizer = load(args.model)
task = nlora.next_task(
    model,
    after=args.after,
    method={"name": "nlora", "weight": args.weight},
    lora={"r": args.rank, "alpha": 2 * args.rank, "dropout": 0.0},
    seed=args.seed,
)
trainer = SFTTrainer(
    model=task.model,
    args=SFTConfig(
        output_dir=f"{args.out}-trainer",
        num_train_epochs=1,
        per_device_train_batch_size=args.batch_size // 2,
        gradient_accumulation_steps=2,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        bf16=torch.cuda.is_available(),
        seed=task.seed,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=Dataset.from_list(read(args.data)),
    processing_class=tokenizer,
    callbacks=[task.callback],
)
trainer.train()
task.save(args.out)
