-- Create or change a poll, if it still is what the caller decided upon.
--
-- KEYS[1] events:{s}   KEYS[2] counters:{s}   KEYS[3] def:{s}:<topic>
-- ARGV[1..3] rev, voted, closed as the caller read them, "" where absent
-- ARGV[4] definition (JSON)   ARGV[5] header without ordinal   ARGV[6] opens_ms or ""   ARGV[7] closes_ms or ""
-- Returns the new rev, or 0 when the poll has changed meanwhile: read it and decide again.
--
-- Atomic: what a change may touch depends on whether there is a vote yet and whether the poll is closed; comparing
-- here keeps a vote or a close from coming between the decision and the change. The hash and the log say the same.
local now = redis.call('HMGET', KEYS[3], 'rev', 'voted', 'closed')
for i = 1, 3 do
  if (now[i] or '') ~= ARGV[i] then
    return 0
  end
end
local rev = tonumber(now[1] or 0) + 1
redis.call('HSET', KEYS[3], 'def', ARGV[4], 'rev', rev, 'opens_ms', ARGV[6], 'closes_ms', ARGV[7])
local ordinal = redis.call('HINCRBY', KEYS[2], 'events', 1)
redis.call('XADD', KEYS[1], '*', 'h', ARGV[5] .. string.format(' %.0f', ordinal), 'd', ARGV[4])
return rev
