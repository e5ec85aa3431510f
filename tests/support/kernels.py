"""Runs tests under the kernels of other processors, and prints a table of what passed.

    python tests/support/kernels.py [ARGUMENTS OF PYTEST]

Without arguments it runs the numerical part of the suite; see `tests/README.md`.
"""

import os
import re
import subprocess
import sys
import time

import torch

NUMERICAL = [
    "tests/layers",
    "tests/models",
    "tests/optimizers",
    "tests/supervised/_generation",
    "tests/supervised/_loop/test_build.py",
    "tests/supervised/_loop/test_chunked_runs.py",
    "tests/supervised/_loop/test_nonfinite.py",
    "tests/supervised/_loop/test_settings.py",
    *(
        f"tests/supervised/test_decoding{part}.py"
        for part in ("", "_prompts", "_logits", "_foreign_caches", "_arguments")
    ),
    "tests/supervised/test_golden.py",
    "-m",
    "not slow and not exhaustive",
    "-k",
    "not test_a_compiled_layer and not ranks",  # which add as others do
]

# A name, variables of the environment, options of pytest, and what the processor must have.
SETTINGS = [
    ("as it is", {}, [], "DEFAULT"),
    ("ATEN_CPU_CAPABILITY=default", {"ATEN_CPU_CAPABILITY": "default"}, [], "DEFAULT"),
    ("ATEN_CPU_CAPABILITY=avx2", {"ATEN_CPU_CAPABILITY": "avx2"}, [], "AVX2"),
    ("ATEN_CPU_CAPABILITY=avx512", {"ATEN_CPU_CAPABILITY": "avx512"}, [], "AVX512"),
    ("MKL_CBWR=COMPATIBLE", {"MKL_CBWR": "COMPATIBLE"}, [], "DEFAULT"),
    ("MKL_CBWR=AVX2", {"MKL_CBWR": "AVX2"}, [], "AVX2"),
    ("ONEDNN_MAX_CPU_ISA=SSE41", {"ONEDNN_MAX_CPU_ISA": "SSE41"}, [], "DEFAULT"),
    ("ONEDNN_MAX_CPU_ISA=AVX2", {"ONEDNN_MAX_CPU_ISA": "AVX2"}, [], "AVX2"),
    ("2 threads", {}, ["--threads", "2"], "DEFAULT"),
    ("products rounded otherwise", {}, ["--other-rounding"], "DEFAULT"),
]
KINDS = ["DEFAULT", "AVX2", "AVX512"]


def main(args):
    here = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {here}")
    rows, code = [], 0
    for name, variables, options, needed in SETTINGS:
        if KINDS.index(needed) > (KINDS.index(here) if here in KINDS else 0):
            rows.append((name, f"not run: the processor has no {needed}", ""))
            continue
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *(args or NUMERICAL)],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        failed = re.findall(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
        code |= bool(done.returncode)
        last = done.stdout.strip().splitlines()[-1].strip("= ") if done.stdout.strip() else "-"
        rows.append((name, last, f"{time.monotonic() - start:.0f} s"))
        print(f"{name}: {last}", *failed, sep="\n  ", flush=True)
    print("\n| kernels | outcome | seconds |\n| --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
