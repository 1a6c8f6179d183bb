-- Nobody asks any more which versions were ever active: what one learned that was rolled back is
-- fresh again.
DROP INDEX activations_version;
