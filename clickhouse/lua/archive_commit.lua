#!lua flags=allow-oom
-- Forget the plan, move the position, bury the entries that became no row, forget the segment files that are archived
-- now, and show the position as a consumer group.
--
-- KEYS[1] archive:{s}:<log>   KEYS[2] fence:{s}:archive   KEYS[3] the log's stream   KEYS[4] dead:{s}
-- KEYS[5] segments:{s}:<log>
-- ARGV[1] fencing token   ARGV[2] the plan, as stored   ARGV[3] its last entry id   ARGV[4] its number of entries
-- ARGV[5] consumer group   ARGV[6] dead letters kept   ARGV[7] number of segments, the first ones, that end at or before
-- ARGV[3]   then per dead letter: entry id, reason, number of words w, w words (fields and values in turn)
-- Returns 1. Errors: FENCED when another owner took over; STALE when this plan is not the one in flight.
--
-- Atomic: a plan forgotten without the position moved would be inserted again under another token; a segment forgotten
-- without it would be lost. The dead letters go with it, so each is buried once; they bring their fields, as the log may
-- not have the entry any more. Allowed above the memory limit, as only what is archived can be trimmed.
local call = redis.call
if call('GET', KEYS[2]) ~= ARGV[1] then
  return redis.error_reply('FENCED token ' .. ARGV[1] .. ' is not the newest')
end
if call('HGET', KEYS[1], 'inflight') ~= ARGV[2] then
  return redis.error_reply('STALE this plan is not in flight')
end
local at = 8
while at <= #ARGV do
  local words = tonumber(ARGV[at + 2])
  call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[6], '*', 'group', ARGV[5], 'log', KEYS[3], 'id', ARGV[at],
    'reason', ARGV[at + 1], unpack(ARGV, at + 3, at + 2 + words))
  at = at + 3 + words
end
call('HDEL', KEYS[1], 'inflight')
call('HSET', KEYS[1], 'committed', ARGV[3])
if tonumber(ARGV[7]) > 0 then
  call('LTRIM', KEYS[5], ARGV[7], -1)
end
if call('EXISTS', KEYS[5]) == 0 then
  call('HDEL', KEYS[1], 'spilled')
end
local entries = call('HINCRBY', KEYS[1], 'entries', ARGV[4])
if redis.pcall('XGROUP', 'SETID', KEYS[3], ARGV[5], ARGV[3], 'ENTRIESREAD', entries)['err'] then
  redis.pcall('XGROUP', 'CREATE', KEYS[3], ARGV[5], ARGV[3], 'ENTRIESREAD', entries)  -- the first commit, or a lost group
end
return 1
