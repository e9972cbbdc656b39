#!lua flags=allow-oom
-- Trim a shard's logs behind what every reader committed and the retention: never a blind MAXLEN.
--
-- KEYS[1] events:{s}   KEYS[2] updates:{s}   KEYS[3] shard:{s}   KEYS[4] archive:{s}:events   KEYS[5] archive:{s}:updates
-- ARGV[1] oldest ms of events kept   ARGV[2] oldest ms of updates kept
-- Returns {events removed, updates removed}.
--
-- The output log waits for the archive of the events, too: a reader who comes from further back than it reaches gets the
-- events from there, and between the two there must be no hole.
--
-- Atomic with reading the positions, so a reader that is set back meanwhile never finds its entries gone. Without an
-- archive position nothing is trimmed: a missing or slow archive must not lose events. What the archive has put on disk
-- (`spilled`, which is there while it is ahead of `committed`) it does not need here any more.
local function lower(a, b)
  local ams, aseq = string.match(a, '^(%d+)-(%d+)$')
  local bms, bseq = string.match(b, '^(%d+)-(%d+)$')
  ams, aseq, bms, bseq = tonumber(ams), tonumber(aseq), tonumber(bms), tonumber(bseq)
  if ams < bms or (ams == bms and aseq < bseq) then return a end
  return b
end
local applied = redis.call('HGET', KEYS[3], 'last_id')
local function safe(key)
  return redis.call('HGET', key, 'spilled') or redis.call('HGET', key, 'committed')
end
local archived, derived = safe(KEYS[4]), safe(KEYS[5])
local removed = {0, 0}
if applied and archived then
  removed[1] = redis.call('XTRIM', KEYS[1], 'MINID', '~', lower(lower(applied, archived), ARGV[1] .. '-0'))
end
if derived and archived then
  removed[2] = redis.call('XTRIM', KEYS[2], 'MINID', '~', lower(lower(derived, archived), ARGV[2] .. '-0'))
end
return removed
