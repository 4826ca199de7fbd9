"""Recordings in other formats: read into stores, and written from them; one file a format."""
