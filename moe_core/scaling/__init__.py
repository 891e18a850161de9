"""What several devices would make of a training that one device was measured at. Needs numpy; never torch."""
