"""Asyncio: feeds decisions, performs what they return, owns tasks and deadlines."""
