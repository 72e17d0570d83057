"""Boards, jobs, records and tables."""
