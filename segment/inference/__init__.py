"""From scans to masks: sliding window, trained models, and whole folders of scans."""
