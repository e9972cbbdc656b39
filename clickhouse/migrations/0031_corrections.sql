-- Which event a later one corrects (`revision` says which version of it this is), and the request that brought it.
--
-- corrects is "" for almost every event and then costs nothing. correlation is the X-Request-Id of the request, so that
-- an event can be followed back to the log of the service that took it, and a body to the events it held; a drawn one
-- has 8 random bytes, which is what it takes for an event that came alone.
ALTER TABLE match_events {on_cluster}
    ADD COLUMN IF NOT EXISTS corrects    String CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS correlation String CODEC(ZSTD(1));
