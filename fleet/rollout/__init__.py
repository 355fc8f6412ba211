"""Rollouts: who gets a release and when, whether it goes on, and how it comes back.

Pure: `waves`, `exposure`, `windows`, `conditions`, `terms`, `table`, `deciding`, `planning`. The database: `reading`,
`history`, `service`, `views`.
"""
