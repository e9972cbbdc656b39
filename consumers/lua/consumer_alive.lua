#!lua flags=allow-oom
-- Say that a consumer runs, forget those that went silent, and list who is left.
--
-- KEYS[1] consumers:<job>   zset: owner -> ms of its last sign of life
-- ARGV[1] owner   ARGV[2] silence after which a consumer counts as gone, ms   ARGV[3] "1" to stay, "0" to leave
-- Returns the owners that run, in no order.
--
-- Uses the server's clock, so consumers need not agree on the time.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
if ARGV[3] == '1' then
  redis.call('ZADD', KEYS[1], now, ARGV[1])
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return redis.call('ZRANGE', KEYS[1], 0, -1)
