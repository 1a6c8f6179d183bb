-- In a probe stands what people asked: of a version that was removed none of it stays. Of a manifest
-- that is damaged nothing can be told.
UPDATE versions SET manifest = CASE WHEN json_valid(manifest)
THEN json_remove(manifest, '$.probe', '$.digest') ELSE '{}' END
WHERE removed_ms IS NOT NULL;
