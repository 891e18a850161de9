"""What all pages share: the frame and its controls, the live component, and the route that feeds it."""
