"""Public data for a machine with internet: slides, expression, follow-up, gene sets, from the services that publish them."""
