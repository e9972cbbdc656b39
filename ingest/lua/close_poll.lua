-- Close a poll, once.
--
-- KEYS[1] events:{s}   KEYS[2] counters:{s}   KEYS[3] def:{s}:<topic>
-- ARGV[1] header without ordinal   ARGV[2] body of the log entry
-- Returns the definition (JSON), or nil when there is no such poll. Closing again changes nothing.
--
-- Atomic: of two callers that close at once one appends the entry; a poll marked closed without its entry in the log
-- would never close for its readers.
local poll = redis.call('HMGET', KEYS[3], 'def', 'closed')
if poll[1] and not poll[2] then
  redis.call('HSET', KEYS[3], 'closed', '1')
  local ordinal = redis.call('HINCRBY', KEYS[2], 'events', 1)
  redis.call('XADD', KEYS[1], '*', 'h', ARGV[1] .. string.format(' %.0f', ordinal), 'd', ARGV[2])
end
return poll[1]
