#!lua flags=allow-oom
-- Begin or end an attempt at computing aggregates anew.
--
-- KEYS[1] archive:{s}:<log>   KEYS[2] fence:{s}:archive   KEYS[3] mend:{s}:<log>   KEYS[4] mend_tries:{s}:<log>
-- ARGV[1] fencing token   ARGV[2] begin | end | settle   ARGV[3] begin: the least number it may have; else its number
-- then the requests it is about, if it was asked for
-- Returns the number of the attempt. Errors: FENCED when another owner took over; STALE when an attempt is under way
-- that did not end (begin), or another one is (end, settle): the log has to be taken over again.
--
-- `rebuild` is there from before the first statement until after the last one, so whoever takes the log over knows that
-- statements may still come, and nobody needs to look otherwise. Atomic: an attempt of a former owner must not begin
-- after the new one has looked; a request must not be forgotten by an attempt that was fenced off. Tries are counted
-- before, so that one that kills its process counts. Allowed above the memory limit: the archive waits for it.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return redis.error_reply('FENCED token ' .. ARGV[1] .. ' is not the newest')
end
local current = redis.call('HMGET', KEYS[1], 'rebuild', 'rebuilds')
if ARGV[2] == 'begin' then
  if current[1] then
    return redis.error_reply('STALE attempt ' .. current[1] .. ' at aggregates has not ended')
  end
  local number = string.format('%.0f', math.max(tonumber(current[2] or 0), tonumber(ARGV[3])) + 1)
  redis.call('HSET', KEYS[1], 'rebuild', number, 'rebuilds', number)
  for i = 4, #ARGV do
    redis.call('HINCRBY', KEYS[4], ARGV[i], 1)
  end
  return tonumber(number)
end
if current[1] ~= ARGV[3] then
  return redis.error_reply('STALE attempt ' .. ARGV[3] .. ' at aggregates is not under way')
end
redis.call('HDEL', KEYS[1], 'rebuild')
if ARGV[2] == 'end' then
  for i = 4, #ARGV do
    redis.call('SREM', KEYS[3], ARGV[i])
    redis.call('HDEL', KEYS[4], ARGV[i])
  end
end
return tonumber(ARGV[3])
