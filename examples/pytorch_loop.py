"""One more task in a loop of your own, with gradient accumulation."""

import torch
from torch.utils.data import DataLoader, RandomSampler
from transformers import DataCollatorForSeq2Seq

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
examples = tokenize(read(args.data), tokenizer)
collate = DataCollatorForSeq2Seq(tokenizer)
order = RandomSampler(examples, generator=torch.Generator().manual_seed(task.seed))
trained = [p for p in task.model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0)
task.model.train()
for batch in DataLoader(examples, args.batch_size, sampler=order, collate_fn=list):
    answer_tokens = sum(label != -100 for example in batch for label in example["labels"])
    for half in (batch[::2], batch[1::2]):
        if half:
            inputs = collate(half).to(task.model.device)
            task.model(**inputs, num_items_in_batch=answer_tokens).loss.backward()
    task.backward()  # the penalty's gradient, once per optimizer step
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
task.save(args.out)
