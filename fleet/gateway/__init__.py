"""The cloud tier: OpenAI-compatible requests of devices, people and programs go on to large models, within limits.

`gateway` tells the story of one request. What it decides (routes, breaker, budgets, filters, cache, prices) is pure.
"""
