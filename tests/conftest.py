"""What every test shares: hypothesis without wall-clock rules, because a busy two-core machine is not a fault."""

from hypothesis import HealthCheck, settings

settings.register_profile("shoal", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("shoal")
