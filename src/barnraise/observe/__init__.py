"""What a run says about itself: events, and what a person makes of them."""
