"""One thread, passive waiting and reproducible property tests, whatever machine the suite runs on."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MUJOCO_GL", "disable")

from hypothesis import HealthCheck, settings

settings.register_profile("echelon", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("echelon")
