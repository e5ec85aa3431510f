"""What other libraries call the things that a Loop takes and does, and what to write here."""

_LENGTH = "how long to train where it runs: loop.run(n_steps), or loop.run(n_epochs=3)"
_TASK = "it in a task: Loop(model, TrainTask(loader, loss, optimizer))"
_EVALS = "eval_tasks=EvalTask(loader, metrics)"
_RATE = "the rate in the task's optimizer, optimizers.Adam(0.001), or TrainTask(lr_schedule=...)"
_RANKS = "n_devices=2, and start the script by torchrun --nproc-per-node=2"
_EVERY = "TrainTask(n_steps_per_checkpoint=100), or Loop(checkpoint_at=lambda step: ...)"
_ROWS = "the batch size in the data: torch.utils.data.DataLoader(dataset, batch_size=32)"
_EPOCHS = ("epochs", "n_epochs", "num_epochs", "max_epochs", "num_train_epochs", "nb_epochs")
_STEPS = ("max_steps", "num_steps", "total_steps", "train_steps", "steps_per_epoch")
_CUT = ("accumulate_grad_batches", "gradient_accumulation_steps", "grad_accum")
_NORM = ("gradient_clip_val", "max_grad_norm", "grad_clip", "clipnorm", "clip_norm")

# By the argument names of Loop.
OF_LOOP = {
    **dict.fromkeys((*_EPOCHS, *_STEPS, "steps", "n_steps"), _LENGTH),
    **dict.fromkeys(("lr", "learning_rate"), _RATE),
    **dict.fromkeys(("optimizer", "optimizers", "loss", "loss_fn", "criterion"), _TASK),
    **dict.fromkeys(("data", "dataset", "dataloader", "train_dataloader", "loader"), _TASK),
    **dict.fromkeys(("train_data", "train_loader", "train_dataset", "labeled_data"), _TASK),
    **dict.fromkeys(("lr_schedule", "scheduler", "lr_scheduler"), "TrainTask(lr_schedule=...)"),
    **dict.fromkeys(("train_task", "training_task", "train_tasks"), "tasks=..."),
    **dict.fromkeys(("metrics", "metric", "val_dataloader", "val_loader"), _EVALS),
    **dict.fromkeys(("eval_data", "eval_dataset", "validation_data", "val_data"), _EVALS),
    **dict.fromkeys(("batch_size", "per_device_train_batch_size"), _ROWS),
    **dict.fromkeys(_CUT, "n_accumulation_steps=4"),
    "clipvalue": "clip_grad_value=0.5",
    **dict.fromkeys(_NORM, "clip_grad_norm=1.0"),
    **dict.fromkeys(("amp", "mixed_precision", "bf16", "dtype"), "precision='bf16'"),
    **dict.fromkeys(("fp16", "scaler", "grad_scaler"), "precision='fp16'"),
    **dict.fromkeys(("gpus", "devices", "num_nodes", "world_size", "num_gpus"), _RANKS),
    **dict.fromkeys(("accelerator", "use_cuda", "gpu", "cuda"), "device='cuda'"),
    **dict.fromkeys(("seed", "rng", "random_state"), "random_seed=0"),
    **dict.fromkeys(("log_dir", "logging_dir", "save_dir", "default_root_dir"), "output_dir='run'"),
    **dict.fromkeys(("dir", "path", "checkpoint_dir", "dirpath"), "output_dir='run'"),
    **dict.fromkeys(("resume", "ckpt_path", "resume_from_checkpoint"), "resume_from='run/model'"),
    **dict.fromkeys(("save_every", "save_steps", "checkpoint_every", "save_interval"), _EVERY),
    **dict.fromkeys(("eval_every", "eval_steps", "val_check_interval"), "eval_at=lambda step: ..."),
    **dict.fromkeys(("save_total_limit", "save_top_k", "max_to_keep"), "keep_last=3"),
    **dict.fromkeys(
        ("monitor", "metric_for_best_model", "load_best_model_at_end", "save_best_only"),
        "checkpoint_low_metric='L2Loss'",
    ),
    **dict.fromkeys(("torch_compile", "jit_compile", "jit"), "compile=True"),
    **dict.fromkeys(("progress_bar", "enable_progress_bar"), "progress=False"),
    **dict.fromkeys(("logger", "log_with", "report_to"), "loggers=[CSVLogger('run/metrics.csv')]"),
    **dict.fromkeys(("logging_steps", "log_every_n_steps", "log_interval"), "log_every=10"),
    **dict.fromkeys(("quiet", "silent"), "verbose=False"),
    **dict.fromkeys(("callback", "hooks"), "callbacks=[MyCallback]"),
    "gradient_checkpointing": "activation_checkpointing=True",
    "fsdp": "strategy='fsdp'",
    "deterministic": "random_seed=0, and torch.use_deterministic_algorithms(True)",
}

# What Loop's arguments were called in Trax 1.3.4, where each was one task.
OF_TRAX_1_3_4 = {"task": "tasks", "eval_task": "eval_tasks"}

# By the names of methods that are called nowhere.
OF_CALLBACKS = {
    **dict.fromkeys(("on_train_begin", "on_train_start", "on_fit_start"), "on_run_begin(step)"),
    **dict.fromkeys(("on_train_end", "on_fit_end"), "on_run_end(step)"),
    **dict.fromkeys(
        ("on_train_batch_start", "on_train_batch_begin", "on_batch_begin"), "on_step_begin(step)"
    ),
    **dict.fromkeys(("on_train_batch_end", "on_batch_end"), "on_step_end(step)"),
    **dict.fromkeys(("on_epoch_end", "on_train_epoch_end"), "on_step_end(step), of each step"),
    **dict.fromkeys(
        ("on_after_backward", "on_before_optimizer_step", "on_pre_optimizer_step"),
        "on_backward_end(step)",
    ),
    **dict.fromkeys(("on_optimizer_step", "on_before_zero_grad"), "on_update_end(step)"),
    **dict.fromkeys(("on_validation_start", "on_test_begin"), "on_evals_begin(step)"),
    **dict.fromkeys(
        ("on_evaluate", "on_validation_end", "on_validation_epoch_end", "on_test_end"),
        "on_evals_end(step), or on_log(step, values)",
    ),
    "on_save_checkpoint": "on_save(step, name)",
    "on_load_checkpoint": "on_load(step)",
}

# By those of Loop.run.
OF_RUN = {
    **{
        name: "n_epochs: loop.run(n_epochs=3), or loop.run(n_steps)"
        for name in _EPOCHS
        if name != "n_epochs"
    },
    **dict.fromkeys((*_STEPS, "steps"), "loop.run(n_steps=100), or loop.run(until=100) in all"),
    **dict.fromkeys(("batch_size", "train_batch_size"), _ROWS),
    **dict.fromkeys(("data", "dataset", "loader", "dataloader", "train_dataloader"), _TASK),
    **dict.fromkeys(("x", "y", "inputs", "targets"), _TASK),
    **dict.fromkeys(("validation_data", "val_dataloader", "eval_data"), "Loop(" + _EVALS + ")"),
    **dict.fromkeys(("callbacks", "verbose", "progress"), "it in Loop(...): run takes steps alone"),
    **dict.fromkeys(("ckpt_path", "resume_from_checkpoint"), "Loop(resume_from='run/model')"),
}

_RUN = "loop.run(n_steps)"
_RUN_EVALS = "loop.run_evals(), which measures on eval_tasks"
_SAVE = "loop.save_checkpoint('model'); `python -m trax_torch.export` makes one file of weights"
_LOAD = "loop.load_checkpoint('run'), or Loop(output_dir='run'), which goes on from there"

# By what would be attributes of a Loop.
OF_ATTRIBUTES = {
    **dict.fromkeys(("fit", "train", "train_step", "training_step", "learn", "start"), _RUN),
    **dict.fromkeys(("training_loop", "run_epoch", "train_epoch", "run_steps"), _RUN),
    **dict.fromkeys(_EPOCHS, "loop.run(n_epochs=3), or loop.epoch for how many were trained"),
    **dict.fromkeys(("evaluate", "eval", "validate", "test", "run_eval", "score"), _RUN_EVALS),
    **dict.fromkeys(("validation", "eval_step", "validation_step", "metrics"), _RUN_EVALS),
    **dict.fromkeys(
        ("predict", "predict_step", "forward", "transform"), "loop.eval_model(x) for one batch x"
    ),
    **dict.fromkeys(
        ("generate", "sample", "decode"), "decoding.autoregressive_sample(loop.eval_model, prompt)"
    ),
    **dict.fromkeys(("save", "save_model", "save_weights", "save_pretrained"), _SAVE),
    **dict.fromkeys(("state_dict", "checkpoint", "save_state"), _SAVE),
    **dict.fromkeys(("load", "load_weights", "load_model", "load_from_checkpoint"), _LOAD),
    **dict.fromkeys(("restore", "resume", "load_state_dict"), _LOAD),
    **dict.fromkeys(("global_step", "n_steps", "current_step", "iteration"), "loop.step"),
    **dict.fromkeys(("optimizer", "opt"), "loop.optimizers[0]"),
    **dict.fromkeys(("lr", "learning_rate", "get_lr"), "loop.optimizers[0].param_groups[0]['lr']"),
    **dict.fromkeys(("task", "train_task"), "loop.tasks[0]"),
    **dict.fromkeys(("losses", "logs", "results"), "loop.history.get('train', 'training/loss')"),
    **dict.fromkeys(("seed", "rng"), "loop.random_seed, or loop.new_rng() for a generator"),
    **dict.fromkeys(("rank", "is_main_process", "is_global_zero"), "loop.is_chief"),
    **dict.fromkeys(("world_size", "num_devices"), "loop.n_devices"),
    **dict.fromkeys(("compile", "configure"), "its settings in Loop(...), when it is made"),
    **dict.fromkeys(
        ("log", "log_metrics", "log_dict"), "loop.log_summary(values, None, '', 'train')"
    ),
    **dict.fromkeys(("add_callback", "add_callbacks"), "Loop(callbacks=[MyCallback])"),
    **dict.fromkeys(("log_dir", "dir", "checkpoint_dir", "default_root_dir"), "loop.output_dir"),
    **dict.fromkeys(("should_stop", "terminate", "stop_training"), "loop.stop()"),
    "count_params": "loop.summary()",
    **dict.fromkeys(("cuda", "to", "cpu"), "Loop(device='cuda')"),
}
