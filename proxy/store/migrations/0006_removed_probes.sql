-- In a probe stands what people asked: of a version that was removed none of it stays.
UPDATE versions SET manifest = json_remove(manifest, '$.probe', '$.digest')
WHERE removed_ms IS NOT NULL;
