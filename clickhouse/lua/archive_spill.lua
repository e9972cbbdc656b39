#!lua flags=allow-oom
-- Note a segment file that is on disk: from here on the log may be trimmed past its entries.
--
-- KEYS[1] archive:{s}:<log>   KEYS[2] fence:{s}:archive   KEYS[3] epochs:{s}   KEYS[4] segments:{s}:<log>
-- ARGV[1] fencing token   ARGV[2] newest epoch the owner knows   ARGV[3] position the segment starts from
-- ARGV[4] its last entry id   ARGV[5] the record, as text
-- Returns 1. Errors: FENCED when another owner took over; STALE when Redis is not what the entries were read from:
-- another incarnation, or another position.
--
-- Atomic: two segments of one range, or one with a hole before it, would archive twice or lose what lies in the hole; a
-- segment of entries that a rollback took from the log must not stand for those that came in their place. Allowed above
-- the memory limit: it is how memory is given back.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return redis.error_reply('FENCED token ' .. ARGV[1] .. ' is not the newest')
end
if redis.call('HGET', KEYS[3], 'now') ~= ARGV[2] then
  return redis.error_reply('STALE a new epoch began')
end
local position = redis.call('HMGET', KEYS[1], 'spilled', 'committed')
if (position[1] or position[2] or '0-0') ~= ARGV[3] then
  return redis.error_reply('STALE the position is not ' .. ARGV[3])
end
redis.call('RPUSH', KEYS[4], ARGV[5])
redis.call('HSET', KEYS[1], 'spilled', ARGV[4])
return 1
