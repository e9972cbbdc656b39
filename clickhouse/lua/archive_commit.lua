#!lua flags=allow-oom
-- Forget the plan, move the position, bury the entries that became no row, and show the position as a consumer group.
--
-- KEYS[1] archive:{s}:<log>   KEYS[2] fence:{s}:archive   KEYS[3] the log's stream   KEYS[4] dead:{s}
-- ARGV[1] fencing token   ARGV[2] the plan, as stored   ARGV[3] its last entry id   ARGV[4] its number of entries
-- ARGV[5] consumer group   ARGV[6] dead letters kept   then two per dead letter: entry id, reason
-- Returns 1. Errors: FENCED when another owner took over; STALE when this plan is not the one in flight.
--
-- Atomic: a plan forgotten without the position moved would be inserted again under another token. The dead letters go
-- with it, so each is buried once. Allowed above the memory limit, as only what is archived can be trimmed.
local call = redis.call
if call('GET', KEYS[2]) ~= ARGV[1] then
  return redis.error_reply('FENCED token ' .. ARGV[1] .. ' is not the newest')
end
if call('HGET', KEYS[1], 'inflight') ~= ARGV[2] then
  return redis.error_reply('STALE this plan is not in flight')
end
for i = 7, #ARGV, 2 do
  local found = call('XRANGE', KEYS[3], ARGV[i], ARGV[i])[1]
  call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[6], '*', 'group', ARGV[5], 'log', KEYS[3], 'id', ARGV[i],
    'reason', ARGV[i + 1], unpack(found and found[2] or {}))
end
call('HDEL', KEYS[1], 'inflight')
call('HSET', KEYS[1], 'committed', ARGV[3])
local entries = call('HINCRBY', KEYS[1], 'entries', ARGV[4])
if redis.pcall('XGROUP', 'SETID', KEYS[3], ARGV[5], ARGV[3], 'ENTRIESREAD', entries)['err'] then
  redis.pcall('XGROUP', 'CREATE', KEYS[3], ARGV[5], ARGV[3], 'ENTRIESREAD', entries)  -- the first commit, or a lost group
end
return 1
