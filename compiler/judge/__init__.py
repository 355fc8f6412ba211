"""Whether a variant is good enough: metrics, paired statistics, gates, and the saboteurs that prove the gates."""
