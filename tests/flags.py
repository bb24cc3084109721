"""Names the XLA flags that tests compile with, in this process and in the programs that they start.

Compiling is most of a run, and what it makes is called a few times: LLVM does not optimize, and fusions go through
XLA:CPU's older emitters, which take half the processor time of the newer ones. With the same flags everywhere, a
program that one process has compiled is read from the cache by the others. `benchmarks/` compile as users do.
"""

import importlib.metadata

QUICK = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA ends a process for a flag that it does not know
    QUICK += " --xla_cpu_use_fusion_emitters=false"
POD = f"--xla_force_host_platform_device_count=4 {QUICK}"  # four CPU devices stand for a pod
