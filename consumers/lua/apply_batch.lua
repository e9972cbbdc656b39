#!lua flags=allow-oom
-- Apply one batch: everything a batch of log entries gives, or nothing.
--
-- KEYS[1] fence:{s}:state   KEYS[2] shard:{s}   KEYS[3] events:{s}   KEYS[4] updates:{s}   KEYS[5] epochs:{s}
-- KEYS[6…] keys of the commands
-- ARGV[1] fencing token           ARGV[2] last_id expected ("0-0" before the first batch)
-- ARGV[3] new last_id             ARGV[4] output entry (field u), "" for none
-- ARGV[5] entries applied since the log began, this batch included (text)
-- ARGV[6] consumer group          ARGV[7] newest epoch the owner knows
-- ARGV[8] number n of words of progress, then n words: field value field value …
-- ARGV[9+n…] commands, each as its number of words followed by the words
-- Returns 1. Errors: FENCED when another owner took over or somebody applied this range already; STALE when an epoch
-- began since the owner looked: it may be one of a process that runs on (a replica was attached), whose scripts stay
-- loaded, and an entry of it would go out under the epoch before, as a position that was never there.
--
-- Scripts do not roll back, so every check comes before the first write; the XADD is the first write and checks the
-- output id itself (it refuses an id at or below the newest one). Numbers arrive as text: Lua's lose integers above 2^53.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('FENCED token ' .. ARGV[1] .. ' is not the newest')
end
if (redis.call('HGET', KEYS[2], 'last_id') or '0-0') ~= ARGV[2] then
  return redis.error_reply('FENCED position moved from ' .. ARGV[2])
end
if (redis.call('HGET', KEYS[5], 'now') or ARGV[7]) ~= ARGV[7] then
  return redis.error_reply('STALE a new epoch began')
end
if ARGV[4] ~= '' then
  redis.call('XADD', KEYS[4], ARGV[3], 'u', ARGV[4])
  redis.call('HSET', KEYS[2], 'updates_id', ARGV[3])
end
local words = tonumber(ARGV[8])
redis.call('HSET', KEYS[2], 'last_id', ARGV[3], 'applied', ARGV[5], unpack(ARGV, 9, 8 + words))
local at = 9 + words
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + count))
  at = at + count + 1
end
if redis.pcall('XGROUP', 'SETID', KEYS[3], ARGV[6], ARGV[3], 'ENTRIESREAD', ARGV[5])['err'] then
  redis.pcall('XGROUP', 'CREATE', KEYS[3], ARGV[6], ARGV[3], 'ENTRIESREAD', ARGV[5])  -- the first batch, or a lost group
end
return 1
