"""What people look at: doctor, cards, pages, curves, videos, summaries."""
