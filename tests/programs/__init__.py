"""Programs for jobs to run; some tell tests what they write."""
