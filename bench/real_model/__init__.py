"""What a real instruct model learns from ratings, served and trained by strop as it is shipped."""
