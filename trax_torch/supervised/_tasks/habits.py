"""What other libraries call the things that a task takes, and what to write here."""

_LENGTH = "how long to train where it runs: loop.run(n_steps), or loop.run(n_epochs=3)"
_RATE = (
    "the rate in the optimizer, optimizers.Adam(0.001), or lr_schedule=lr_schedules.constant(0.1)"
)
_EVERY = "n_steps_per_checkpoint=100"
_ROWS = "the batch size in the data: torch.utils.data.DataLoader(dataset, batch_size=32)"
_DATA = "the data first: TrainTask(loader, loss, optimizer)"
_LOSS = "loss_layer=nn.CrossEntropyLoss(), or the loss second: TrainTask(loader, loss, optimizer)"
_WHOLE = "Loop's argument, not a task's: Loop(model, task, {})"

# By the argument names of TrainTask.
OF_TRAIN_TASK = {
    **dict.fromkeys(("lr", "learning_rate", "base_lr"), _RATE),
    **dict.fromkeys(("scheduler", "lr_scheduler", "schedule"), "lr_schedule=..."),
    **dict.fromkeys(("n_epochs", "num_epochs", "max_epochs"), "epochs=3, for loop.run()"),
    **dict.fromkeys(("steps", "n_steps", "max_steps", "num_steps"), _LENGTH),
    **dict.fromkeys(("batch_size", "train_batch_size"), _ROWS),
    **dict.fromkeys(("data", "dataset", "loader", "dataloader", "train_dataloader"), _DATA),
    **dict.fromkeys(("train_data", "train_loader", "train_dataset", "inputs"), _DATA),
    **dict.fromkeys(("loss_fn", "loss_function", "criterion", "objective"), _LOSS),
    **dict.fromkeys(("opt", "optim", "optimizers"), "optimizer=optimizers.Adam(0.001)"),
    **dict.fromkeys(("model", "module", "net"), "the model in Loop(model, task)"),
    **dict.fromkeys(("metric", "metrics"), "EvalTask(loader, metrics), and give it as eval_tasks"),
    **dict.fromkeys(("save_every", "checkpoint_every", "save_steps", "save_freq"), _EVERY),
    **dict.fromkeys(("name", "task_name"), "loss_name=... or export_prefix=..."),
    "accumulate_grad_batches": _WHOLE.format("n_accumulation_steps=4"),
    "gradient_accumulation_steps": _WHOLE.format("n_accumulation_steps=4"),
    "output_dir": _WHOLE.format("output_dir='run'"),
    "device": _WHOLE.format("device='cuda'"),
    "callbacks": _WHOLE.format("callbacks=[...]"),
    "clip_grad_norm": _WHOLE.format("clip_grad_norm=1.0"),
    "clip_grad_value": _WHOLE.format("clip_grad_value=0.5"),
    "precision": _WHOLE.format("precision='bf16'"),
}

# By those of EvalTask.
OF_EVAL_TASK = {
    **dict.fromkeys(("data", "dataset", "loader", "dataloader"), "EvalTask(loader, metrics)"),
    **dict.fromkeys(("metric", "loss", "loss_fn", "criterion", "loss_layer"), "metrics=[...]"),
    **dict.fromkeys(("names", "name"), "metric_names=[...]"),
    **dict.fromkeys(("steps", "n_batches", "num_batches", "limit_val_batches"), "n_eval_batches=4"),
    **dict.fromkeys(("batch_size", "eval_batch_size"), _ROWS),
    **dict.fromkeys(("every", "eval_every", "eval_steps", "n_steps"), _WHOLE.format("eval_at=...")),
    "optimizer": "the optimizer in TrainTask: what is measured is not trained on",
}
