"""Fine-tunes a causal model of Hugging Face's transformers, by adapters of peft's.

    python -m trax_torch.examples.hugging_face_finetune

It needs `pip install transformers peft` and no download: the model is small and random, the
sentences are sums in words, and their tokenizer is trained on the spot. With a model of your own,
`AutoModelForCausalLM.from_pretrained(...)`, and its tokenizer, the lines that matter stay as they
are. Stopped, and run again with the same `--output-dir`, it goes on.
"""

import argparse
import functools
import random
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from trax_torch.supervised import EvalTask, Loop, TrainTask

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)


def main(argv: list[str] | None = None) -> float:
    """Trains adapters, evaluates, saves, and answers a sum.

    Args:
      argv: command-line arguments; by default the process's.

    Returns:
      The loss of sums that it was not trained on, in nats a token.
    """
    args = parse(argv)
    torch.manual_seed(args.seed)
    texts = sums()
    random.Random(args.seed).shuffle(texts)
    tokenizer = tokenizer_of(texts)
    rows: Any = [tokenizer(text) for text in texts]  # torch asks for a Dataset, and takes a list
    model = adapted(small_model(tokenizer))

    from transformers import DataCollatorForLanguageModeling, get_linear_schedule_with_warmup

    # The lines that matter:
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    order = torch.Generator().manual_seed(args.seed)
    loader = DataLoader(rows[80:], args.batch_size, True, collate_fn=collate, generator=order)
    held_out = DataLoader(rows[:80], 80, collate_fn=collate)
    warmup = dict(num_warmup_steps=20, num_training_steps=args.steps)
    schedule = functools.partial(get_linear_schedule_with_warmup, **warmup)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    task = TrainTask(loader, "model", optimizer, schedule, n_steps_per_checkpoint=args.eval_every)
    evals = EvalTask(held_out, "model", metric_names=["loss"])
    loop = Loop(model, task, eval_tasks=evals, output_dir=args.output_dir)
    loop.run(until=args.steps)
    model.save_pretrained(Path(args.output_dir) / "adapter")
    # and that is all.

    prompt = tokenizer("three plus four is", return_tensors="pt")
    model.eval()
    answer = model.generate(**prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
    print(tokenizer.decode(answer[0], skip_special_tokens=True))
    print(f"Checkpoints, TensorBoard files and the adapter are in {args.output_dir}")
    return float(loop.history.get("eval", "metrics/loss")[-1][1])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Returns the settings; each has a default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="how many in all")
    parser.add_argument("--eval-every", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", default="hugging_face_run")
    return parser.parse_args(argv)


def sums() -> list[str]:
    """Returns all sums of two numbers below ten, with a few words around them."""
    return [
        f"{start}{NUMBERS[a]} plus {NUMBERS[b]} is {NUMBERS[a + b]} ."
        for start in ("", "we know that ", "so ", "as we said ")
        for a in range(10)
        for b in range(10)
    ]


def tokenizer_of(texts: list[str]) -> Any:
    """Returns a tokenizer that was trained on texts: byte pairs, with padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def small_model(tokenizer: Any) -> Any:
    """Returns a small GPT-2 with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,  # as large as trained ones: adapters alone cannot make them so
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def adapted(model: Any) -> Any:
    """Returns a model whose weights are frozen, but for adapters of a low rank beside them."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=16,
        lora_alpha=32,
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
    )
    return get_peft_model(model, config)


if __name__ == "__main__":
    main()
