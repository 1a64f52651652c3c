"""Durable: what a study writes down so that no crash, full disk or outage loses or doubles it."""
