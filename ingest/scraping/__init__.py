"""Scraping: from what is discovered to pages of samples."""
