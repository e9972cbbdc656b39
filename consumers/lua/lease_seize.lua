#!lua flags=allow-oom
-- Take a shard from whoever owns it, for a repair.
--
-- KEYS[1] lease:{s}:<job>   KEYS[2] fence:{s}:<job>
-- ARGV[1] owner   ARGV[2] time to live, ms
-- Returns the token. The former owner is refused at its next write and takes the shard up again when we give it back.
--
-- Atomic: a token drawn without the lease would be overtaken by the next consumer at once.
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. token, 'PX', ARGV[2])
return token
