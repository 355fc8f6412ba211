"""Enrolment states, certificates, batches, people, audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from cryptography import x509

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for column in (
        sa.Column("group", sa.String(), nullable=False, server_default="default"),
        sa.Column("state", sa.String(), nullable=False, server_default="new"),
        sa.Column("batch", sa.String(), nullable=True),
        sa.Column("request", sa.Text(), nullable=False, server_default=""),
        sa.Column("next_certificate", sa.Text(), nullable=False, server_default=""),
        sa.Column("sealing_key", sa.String(), nullable=False, server_default=""),
        sa.Column("ack_seq", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("batch_starts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("batch_sent", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("command_seq", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("command_expires", sa.String(), nullable=False, server_default=""),
        sa.Column("command_envelope", sa.Text(), nullable=False, server_default=""),
    ):
        op.add_column("device", column)
    op.execute("UPDATE device SET state = 'enrolled' WHERE enrolled IS NOT NULL")
    op.create_index("ix_device_group", "device", ["group"])
    op.create_index("ix_device_state", "device", ["state"])
    op.add_column("rollout", sa.Column("group", sa.String(), nullable=True))
    op.create_table(
        "certificate",
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("pem", sa.Text(), nullable=False),
        sa.Column("issued", sa.String(), nullable=False),
        sa.Column("expires", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("revoked", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("serial"),
    )
    op.create_index("ix_certificate_device", "certificate", ["device"])
    _keep_certificates()
    op.create_table(
        "claim",
        sa.Column("batch", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("group", sa.String(), nullable=False),
        sa.Column("quota", sa.Integer(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.Column("expires", sa.String(), nullable=False),
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("certificate", sa.Text(), nullable=False),
        sa.Column("request_key", sa.String(), nullable=True),
        sa.Column("revoked", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("batch"),
    )
    op.create_index("ix_claim_serial", "claim", ["serial"])
    op.create_table(
        "user",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("password", sa.Text(), nullable=False),
        sa.Column("roles", sa.String(), nullable=False),
        sa.Column("groups", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "api_token",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("roles", sa.String(), nullable=False),
        sa.Column("groups", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.Column("expires", sa.String(), nullable=True),
        sa.Column("last_used", sa.String(), nullable=True),
        sa.Column("revoked", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("sha256"),
    )
    op.create_index("ix_api_token_owner", "api_token", ["owner"])
    op.execute(
        "INSERT INTO api_token (id, sha256, name, owner, roles, groups, created)"
        " SELECT substr(sha256, 1, 12), sha256, name, '', '[\"admin\"]', '[]', created FROM operator_token"
    )
    op.drop_table("operator_token")
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_table(
        "meta",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )


def _keep_certificates() -> None:
    """A device that is enrolled already has a certificate, which must be known to be revoked one day."""
    connection = op.get_bind()
    rows = connection.execute(sa.text("SELECT id, certificate, enrolled FROM device WHERE certificate != ''")).all()
    for device, pem, enrolled in rows:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        connection.execute(
            sa.text(
                "INSERT INTO certificate (serial, device, pem, issued, expires, state, reason)"
                " VALUES (:serial, :device, :pem, :issued, :expires, 'current', '')"
            ),
            {
                "serial": f"{certificate.serial_number:x}",
                "device": device,
                "pem": pem,
                "issued": enrolled,
                "expires": certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            },
        )
