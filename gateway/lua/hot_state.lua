-- Where a shard stands and the hot state of some topics, as of one moment.
--
-- KEYS[1] shard:{s}   KEYS[2] epochs:{s}   KEYS[3…] state:{s}:<topic>, or maps:{s}:<match_id> for a whole match
-- ARGV[i] for KEYS[2+i]: "" for a state, else what stands before a map id in the state key of the match's maps
-- Returns {last_id, updates_id, epochs (field, value, …), states}; per key of KEYS[3…] states holds
--   {pos, data} (nil values when there is no such topic), or {map_id, pos, data, …} for a whole match.
--
-- One script, because a snapshot and the position it belongs to must not be torn apart by an apply in between: live
-- messages continue strictly after last_id. Reads only. The state keys of a match's maps are not in KEYS; they carry
-- the same hash tag, so on Redis Cluster they are in the same slot.
local place = redis.call('HMGET', KEYS[1], 'last_id', 'updates_id')
local states = {}
for i = 3, #KEYS do
  local prefix = ARGV[i - 2]
  if prefix == '' then
    states[#states + 1] = redis.call('HMGET', KEYS[i], 'pos', 'data')
  else
    local maps = {}
    for _, map_id in ipairs(redis.call('SMEMBERS', KEYS[i])) do
      local state = redis.call('HMGET', prefix .. map_id, 'pos', 'data')
      maps[#maps + 1] = map_id
      maps[#maps + 1] = state[1]
      maps[#maps + 1] = state[2]
    end
    states[#states + 1] = maps
  end
end
return {place[1], place[2], redis.call('HGETALL', KEYS[2]), states}
