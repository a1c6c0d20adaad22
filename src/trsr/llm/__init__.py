"""Language model engines behind one seam: write texts, score label tokens, find models."""
