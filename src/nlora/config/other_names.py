"""What the Trainer, PEFT, other tools and earlier versions of nlora call the keys of a configuration.

>>> named_elsewhere("num_train_epochs")
'train.epochs'
"""

from __future__ import annotations

_EPOCHS = "train.epochs, which may be a fraction"
_MICRO_BATCH = "train.micro_batch_size (train.batch_size is the whole optimizer step's)"
_FORMAT = "dtype: float32 or bfloat16"

_OURS = {
    "model": ("base_model", "model_id", "model_name", "model_name_or_path", "model_path", "pretrained_model"),
    "data": ("data_dir", "data_path", "dataset", "dataset_name"),
    "tasks": ("task", "task_config_dir", "task_order"),
    "name": ("experiment_name", "run_name"),
    "output_dir": ("logging_dir", "out", "out_dir", "output", "output_path", "save_dir"),
    "seed": ("data_seed", "random_seed"),
    "trust_remote_code": ("remote_code",),
    _FORMAT: ("bf16", "fp16", "mixed_precision", "precision", "torch_dtype"),
    "quantize: 4bit or 8bit": (
        "bnb_4bit_quant_type", "load_in_4bit", "load_in_8bit", "quantization", "quantization_config", "quantise"
    ),
    "protocol: released, which keeps them": ("keep_unlabeled", "keep_unlabelled"),
    "method.weight": ("l1_weight", "lambda", "lambda_1", "lamda_1", "reg_weight"),
    "tasks.N.columns.text": (
        "dataset_text_field", "input_column", "prompt_column", "sentence_column", "source_column", "text_column",
        "text_field",
    ),
    "tasks.N.columns.label": (
        "answer_column", "label_column", "label_field", "output_column", "response_column", "target_column"
    ),
    "tasks.N.test_share": (
        "split_ratio", "test_size", "test_split", "train_size", "val_set_size", "val_size", "validation_split"
    ),
    "tasks.N.metric": ("compute_metrics", "eval_metric", "metric_name", "metrics", "scorer", "scoring"),
    "tasks.N.template": ("input_template", "prompt_format", "prompt_template"),
    "tasks.N.label_names": ("class_names", "id2label", "label_map", "label_mapping"),
    "replay.memory": ("buffer_size", "memory_size", "rehearsal", "replay_buffer", "replay_size"),
    "replay.share": ("replay_ratio", "replay_share"),
    "lora.r": ("lora_r", "lora_rank", "rank"),
    "lora.alpha": ("lora_alpha",),
    "lora.dropout": ("lora_dropout",),
    "lora.targets": ("lora_target_modules", "lora_targets", "target_modules"),
    "train.epochs": ("max_epochs", "n_epochs", "num_epochs", "num_train_epochs"),
    f"{_EPOCHS}, or train.max_samples": ("max_steps", "num_steps", "num_training_steps", "total_steps"),
    "train.batch_size": ("global_batch_size", "total_batch_size", "train_batch_size"),
    _MICRO_BATCH: ("per_device_batch_size", "per_device_train_batch_size", "per_gpu_train_batch_size"),
    "train.batch_size, the examples of an optimizer step, and train.micro_batch_size, those of a forward pass": (
        "accumulate_grad_batches", "accumulation_steps", "grad_accum_steps", "gradient_accumulation_steps"
    ),
    "train.learning_rate": ("lr",),
    "train.weight_decay": ("wd",),
    "train.warmup_steps, or train.warmup_ratio": ("num_warmup_steps", "warmup"),
    "train.schedule: constant, linear or cosine": (
        "lr_schedule", "lr_scheduler", "lr_scheduler_kwargs", "lr_scheduler_type", "scheduler", "scheduler_type"
    ),
    "train.early_stopping: {patience: N}, which keeps the best epoch": (
        "early_stopping_patience", "load_best_model_at_end", "metric_for_best_model"
    ),
    "train.label_weights: balanced, or {label: weight}": (
        "class_weight", "class_weights", "label_weight", "loss_weights", "sample_weight", "weighted_loss"
    ),
    "train.max_grad_norm": ("clip_grad_norm", "grad_clip", "gradient_clip_val", "gradient_clipping"),
    "train.max_source_tokens": ("cutoff_len", "max_input_length", "max_length", "max_seq_length", "max_source_length"),
    "train.max_target_tokens": ("generation_max_length", "max_new_tokens", "max_target_length"),
    "train.max_samples": ("max_num_instances_per_task", "max_train_samples"),
    "evaluate.batch_size": ("eval_batch_size", "per_device_eval_batch_size", "per_gpu_eval_batch_size"),
    "evaluate.max_samples": ("max_eval_samples", "max_num_instances_per_eval_task", "max_predict_samples"),
    "evaluate.decode: labels or generate": ("predict_with_generate",),
}  # fmt: skip
_BY_NAME = {theirs: ours for ours, names in _OURS.items() for theirs in names}


def named_elsewhere(key: str) -> str | None:
    """Our key, or what to write, for another tool's name; None for an unknown name."""
    return _BY_NAME.get(key.lower().replace("-", "_"))
