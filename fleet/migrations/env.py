"""Alembic's entry: the connection comes from `fleet.store.database`, which also decides when to run."""

from __future__ import annotations

from alembic import context
from sqlmodel import SQLModel

import fleet.store.agreement_table
import fleet.store.drift_tables
import fleet.store.evidence_tables
import fleet.store.gateway_tables
import fleet.store.health_tables
import fleet.store.registry_tables
import fleet.store.rollout_tables
import fleet.store.routed_table
import fleet.store.shadow_table
import fleet.store.tables
import fleet.store.tag_table  # noqa: F401  registers the tables

context.configure(connection=context.config.attributes["connection"], target_metadata=SQLModel.metadata)
with context.begin_transaction():
    context.run_migrations()
