"""The HTTPS side: operators, enrolment, gateway. It alone knows status codes."""
