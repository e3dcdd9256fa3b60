# SPDX-License-Identifier: MIT
"""``python -m tests.bench``: all benchmarks."""

from tests.bench import bench_fs, bench_interpose, bench_netlink, bench_session, bench_spdm

bench_fs.main()
bench_netlink.main()
bench_interpose.main()
bench_session.main()
bench_spdm.main()
