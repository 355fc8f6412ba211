"""Gates: whether a rollout goes on, from evidence, with statistics that stay honest however often one looks."""
