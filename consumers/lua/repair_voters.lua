#!lua flags=allow-oom
-- Gather the voters of a poll that is computed anew, beside those there are.
--
-- KEYS[1] fence:{s}:state   KEYS[2] voters:{s}:<topic>:new
-- ARGV[1] fencing token   ARGV[2] "1" = forget what an earlier repair left   ARGV[3] time to live, s
-- then voter, option, …
-- Returns 1. Errors: FENCED when another owner took over.
--
-- They may be too many for one call, and nobody reads them here: `repair_state` puts all of them in place at once.
-- Without the check a former repair would add to what another one gathers.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('FENCED token ' .. ARGV[1] .. ' is not the newest')
end
if ARGV[2] == '1' then
  redis.call('DEL', KEYS[2])
end
if #ARGV > 3 then
  redis.call('HSET', KEYS[2], unpack(ARGV, 4))
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
return 1
