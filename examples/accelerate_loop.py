"""One more task with Accelerate."""

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader
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
set_seed(task.seed)
accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
examples = tokenize(read(args.data), tokenizer)
trained = [p for p in task.model.parameters() if p.requires_grad]
network, optimizer, batches = accelerator.prepare(
    task.model,
    torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0),
    DataLoader(examples, args.batch_size, shuffle=True, collate_fn=DataCollatorForSeq2Seq(tokenizer)),
)
network.train()
for inputs in batches:
    accelerator.backward(network(**inputs).loss)
    task.backward()  # the penalty's gradient, once per optimizer step
    accelerator.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
task.save(args.out)
