#!lua flags=allow-oom
-- Take a free lease and draw the next fencing token.
--
-- KEYS[1] lease:{s}:<job>   KEYS[2] fence:{s}:<job>
-- ARGV[1] owner   ARGV[2] time to live, ms
-- Returns the token, or 0 when somebody holds the lease.
--
-- Atomic: a token drawn without the lease, or a lease without a new token, would let two owners write at once.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. token, 'PX', ARGV[2])
return token
