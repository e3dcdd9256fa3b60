# SPDX-License-Identifier: MIT
"""``python -m tests.bench``: all benchmarks."""

from tests.bench import bench_fs

bench_fs.main()
