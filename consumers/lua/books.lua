#!lua flags=no-writes
-- What a shard's hot state says, all of it as of one position.
--
-- KEYS[1] shard:{s}   KEYS[2] counters:{s}   KEYS[3] events:{s}   KEYS[4…] state:{s}:<topic>
-- Returns {progress (field, value, …), counters (field, value, …), newest entry or {}, per topic {data, priv}}.
--
-- Atomic with the position: states read one by one while votes pour in belong to no position at all, and nothing could
-- be compared with them.
local states = {}
for i = 4, #KEYS do
  states[#states + 1] = redis.call('HMGET', KEYS[i], 'data', 'priv')
end
return {
  redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]),
  redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1), states,
}
