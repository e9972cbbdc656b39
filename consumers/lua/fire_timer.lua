#!lua flags=allow-oom
-- Append the log entry that a due timer stands for: what a clock changes is a log entry like any other.
--
-- KEYS[1] fence:{s}:state   KEYS[2] timers:{s}   KEYS[3] events:{s}   KEYS[4] counters:{s}   KEYS[5] def:{s}:<topic>
-- ARGV[1] fencing token   ARGV[2] member "<open|close|idle> <topic>"   ARGV[3] due ms as read   ARGV[4] now, ms
-- ARGV[5] header without ordinal   ARGV[6] body
-- Returns 1 when appended, 0 when the timer was void (moved meanwhile, poll closed, closing time changed).
--
-- Atomic with the poll's definition: a PUT that moves closes_at either comes before this script, which then sees it,
-- or after it and is refused because the poll is closed. closed is set here, in the same step as the entry.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('FENCED token ' .. ARGV[1] .. ' is not the newest')
end
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[2]) or '-1') ~= tonumber(ARGV[3]) then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[2])
local action = string.match(ARGV[2], '^(%a+) ')
if action ~= 'idle' then
  local def = redis.call('HMGET', KEYS[5], 'closed', action == 'open' and 'opens_ms' or 'closes_ms')
  local due = tonumber(def[2] or '')
  if def[1] == '1' or not due or due > tonumber(ARGV[4]) then
    return 0
  end
  if action == 'close' then
    redis.call('HSET', KEYS[5], 'closed', '1')
  end
end
local ordinal = redis.call('HINCRBY', KEYS[4], 'events', 1)
redis.call('XADD', KEYS[3], '*', 'h', ARGV[5] .. ' ' .. string.format('%.0f', ordinal), 'd', ARGV[6])
return 1
