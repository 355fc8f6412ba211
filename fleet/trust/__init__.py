"""Who is believed: the certificate authority, enrolment, releases, and what the fleet signs."""
